// A hand on the table: one pointer takes hold, moves and lets go; meanwhile any other is nobody's.

export class Grip {
  /**
   * @param {Scene} scene the table
   * @param {(place: [number, number]) => string | null | false} reach what can be taken at a place, if anything
   * @param {(content: object) => void} hand tells the studio what the hand does
   */
  constructor(scene, reach, hand) {
    Object.assign(this, { scene, reach, hand });
    this.place = null; // where the hand is, while it holds
    this.pointer = null; // the one that holds
    this.waiting = false; // whether the hand has moved since the last picture
    const canvas = scene.element;
    canvas.addEventListener("pointerdown", (event) => this.take(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(end, (event) => event.pointerId === this.pointer && this.release());
    }
    canvas.addEventListener("touchstart", (event) => this.touched(event), { passive: false });
  }

  take(event) {
    const place = this.scene.place(event);
    const thing = !this.place && event.isPrimary && event.button === 0 && this.reach(place);
    if (!thing) return;
    event.preventDefault();
    this.scene.element.focus({ preventScroll: true });
    this.scene.element.setPointerCapture(event.pointerId);
    this.place = place;
    this.pointer = event.pointerId;
    this.hand({ do: "take", thing, x: place[0], y: place[1] });
  }

  /** A finger beside what can be taken scrolls the page; a second one neither scrolls nor zooms. */
  touched(event) {
    const takes = event.touches.length === 1 && this.reach(this.scene.place(event.touches[0]));
    if (this.place || takes) event.preventDefault();
  }

  move(event) {
    const place = this.scene.place(event);
    if (!this.place) this.scene.element.style.cursor = this.reach(place) ? "grab" : "";
    if (!this.place || event.pointerId !== this.pointer) return;
    this.place = place;
    if (!this.waiting) requestAnimationFrame(() => this.drag());
    this.waiting = true;
  }

  /** Once a picture is enough: a mouse may report a thousand times a second. */
  drag() {
    if (this.waiting && this.place) this.hand({ do: "drag", x: this.place[0], y: this.place[1] });
    this.waiting = false;
  }

  release() {
    if (!this.place) return;
    this.drag();
    this.drop();
    this.hand({ do: "release" });
  }

  /** Lets go where the studio has done so already. */
  drop() {
    this.place = this.pointer = null;
  }
}
