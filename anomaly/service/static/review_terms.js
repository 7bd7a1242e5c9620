// The terms of the review page: for a run, and for the training images of a fitted model.

const RUN = {
  kind: "run",
  verdicts: { defect: "Rejected", good: "Accepted" },
  labels: { good: "really good", defect: "really defective", "": "not labelled" },
  buttons: { good: "✓ Really good", defect: "✕ Really defective", "": "No label" },
  tiles: { good: "✓ good", defect: "✕ defect" },
  marks: { good: "✓ really good", defect: "✕ really defective" },
  filters: { good: "Labelled really good", defect: "Labelled really defective" },
  hint: "Choose the real state of the part. The next image opens.",
  order: "Order of the run",
  card: "Run",
  p: "Share of images with an equal or higher score, among the calibration images and this image",
};
const TRAINING = {
  kind: "training",
  verdicts: { defect: "Suspicious", good: "Like the others" },
  labels: { good: "kept", defect: "excluded", "": "not reviewed" },
  buttons: { good: "✓ Keep", defect: "✕ Exclude", "": "No decision" },
  tiles: { good: "✓ keep", defect: "✕ exclude" },
  marks: { good: "✓ kept", defect: "✕ excluded" },
  filters: { good: "Kept", defect: "Excluded" },
  hint: "Exclude an image that does not belong in the training set. The next image opens.",
  order: "Most suspicious first",
  card: "Training images",
  p: "Chance that a good image of this folder is as far from the others",
};

/** The terms in use. */
export let terms = RUN;

/** Choose the terms of a kind of review: "run" or "training". */
export function useTerms(kind) {
  terms = kind === "training" ? TRAINING : RUN;
}
