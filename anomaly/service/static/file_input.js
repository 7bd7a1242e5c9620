// Images into the page: chosen, dropped anywhere on it, or pasted.

/** Listen for images. onFiles(files) takes them, with names of their own for what was pasted. */
export function takeImages({ input, dropZone, onFiles }) {
  input.addEventListener("change", () => {
    onFiles([...input.files]);
    input.value = "";
  });
  let depth = 0;
  const over = (step) => {
    depth = Math.max(0, depth + step);
    dropZone.classList.toggle("is-over", depth > 0);
  };
  addEventListener("dragenter", () => over(1));
  addEventListener("dragleave", () => over(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(-depth);
    if (event.dataTransfer.files.length > 0) onFiles([...event.dataTransfer.files]);
  });
  let numPasted = 0;
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length > 0) onFiles(files.map((file) => new File([file], `pasted-${++numPasted}-${file.name}`, { type: file.type })));
  });
}
