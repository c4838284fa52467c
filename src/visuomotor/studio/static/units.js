// What Push-T's numbers mean: steps in time, coverage as success, shares as text.

export const FPS = 10; // steps a second
export const SUCCESS = 0.95; // an episode whose coverage is above is solved

export function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}
