/** Pictures on their way in: dropped, pasted, chosen or photographed, and made fit to be sent. */

import { byId } from "./dom.js";

const TAKEN = new Set(["image/jpeg", "image/png", "image/webp"]); // as they are
const BYTES_MAX = 1_000_000;
const SIDE_MAX = 1600; // several times what a model sees
const QUALITY = 0.92;

/** Call `open` with the pictures of every drop, paste and choice. */
export function accept(open) {
  const take = (files) => files.length && open([...files]);
  for (const id of ["choose", "photograph"]) {
    byId(id).addEventListener("change", ({ target }) => {
      take(target.files);
      target.value = ""; // or the same picture could not be chosen twice
    });
  }
  document.addEventListener("paste", ({ clipboardData }) => take(clipboardData.files));
  document.addEventListener("dragover", (event) => {
    event.preventDefault(); // or the browser leaves the page for the picture
    byId("frame").classList.add("over");
  });
  document.addEventListener("dragleave", ({ relatedTarget }) => {
    if (!relatedTarget) byId("frame").classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    byId("frame").classList.remove("over");
    take(event.dataTransfer.files);
  });
}

/**
 * Return what to send of a file: itself, or where it is large or of another format, a JPEG of at
 * most 1600 pixels. Throws an error that says what to do.
 */
export async function prepared(file) {
  if (TAKEN.has(file.type) && file.size <= BYTES_MAX) return file;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file); // turned as its EXIF says
  } catch {
    if (TAKEN.has(file.type)) return file; // the service says what is wrong with it
    throw new Error(`This browser cannot open ${file.name || "that"} as a picture; save it as JPEG`);
  }
  const scale = Math.min(1, SIDE_MAX / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white"; // behind what is transparent, as the service has it
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", QUALITY));
}
