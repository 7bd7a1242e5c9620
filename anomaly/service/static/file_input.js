// Image files from the file dialog, by drag and drop, or from the clipboard.

/** Listen for images. onFiles(files): receives them; pasted files get a numbered name. */
export function listenForImages({ input, dropZone, onFiles }) {
  input.addEventListener("change", () => {
    onFiles([...input.files]);
    input.value = "";
  });
  let depth = 0;
  const changeDepth = (step) => {
    depth = Math.max(0, depth + step);
    dropZone.classList.toggle("is-drop-target", depth > 0);
  };
  addEventListener("dragenter", () => changeDepth(1));
  addEventListener("dragleave", () => changeDepth(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    changeDepth(-depth);
    if (event.dataTransfer.files.length > 0) onFiles([...event.dataTransfer.files]);
  });
  let numPasted = 0;
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length > 0) onFiles(files.map((file) => new File([file], `pasted-${++numPasted}-${file.name}`, { type: file.type })));
  });
}
