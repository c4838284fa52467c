// Push-T's table in its own pixels: 512 x 512, y downward.

export const SIZE = 512;
export const GOAL = [256, 256, Math.PI / 4];
export const RADIUS = 15; // of the agent
export const WALLS = [5, 506];
const CORNERS = [[-60, 0], [60, 0], [60, 30], [15, 30], [15, 120], [-15, 120], [-15, 30], [-60, 30]];
const REACH = 12; // pixels beside it at which a finger still takes hold

/** The outline of the T at a pose. */
export function outline([x, y, angle]) {
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return CORNERS.map(([u, v]) => [x + u * cos - v * sin, y + u * sin + v * cos]);
}

/** What lies under a point: "agent", "block" or null. */
export function under([x, y], state) {
  if (Math.hypot(x - state[0], y - state[1]) <= RADIUS + REACH / 2) return "agent";
  const [cos, sin] = [Math.cos(-state[4]), Math.sin(-state[4])];
  const [dx, dy] = [x - state[2], y - state[3]];
  const [u, v] = [dx * cos - dy * sin, dx * sin + dy * cos];
  const between = (value, least, most) => value >= least - REACH && value <= most + REACH;
  const bar = between(u, -60, 60) && between(v, 0, 30);
  const stem = between(u, -15, 15) && between(v, 0, 120);
  return bar || stem ? "block" : null;
}
