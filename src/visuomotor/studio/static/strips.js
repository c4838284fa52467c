// Frames of episodes, fetched a stretch at a time and kept for a while.

const COUNT = 16; // frames a stretch
const KEPT = 48; // stretches

const kept = new Map();

/**
 * A frame as something that a canvas can draw.
 * @returns {Promise<{picture: ImageBitmap, top: number, width: number, height: number}>} the stretch, and where it is
 */
export async function fetchFrame(source, episode, camera, frame, length) {
  const first = Math.floor(frame / COUNT) * COUNT;
  const count = Math.min(COUNT, length - first);
  const address = `/api/data/${source}/episodes/${episode}/frames?${new URLSearchParams({ camera, first, count })}`;
  if (!kept.has(address)) {
    kept.set(address, fetchPicture(address));
    kept.get(address).catch(() => kept.delete(address)); // the next one to ask tries again
  }
  const picture = await kept.get(address);
  kept.delete(address); // and in again, as the one used last
  kept.set(address, Promise.resolve(picture));
  while (kept.size > KEPT) kept.delete(kept.keys().next().value);
  const height = picture.height / count;
  return { picture, top: (frame - first) * height, width: picture.width, height };
}

async function fetchPicture(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error((await answer.json()).error);
  return createImageBitmap(await answer.blob());
}

/** Draws it into a canvas, which takes its size. */
export function drawFrame(canvas, { picture, top, width, height }) {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  canvas.getContext("2d").drawImage(picture, 0, top, width, height, 0, 0, width, height);
}
