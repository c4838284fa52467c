// What numbers and names mean to people: steps in time, coverage as success, shares as text, samplers.

export const FPS = 10; // steps a second
export const SUCCESS = 0.95; // an episode whose coverage is above is solved

export const SAMPLERS = { DPMSolverMultistep: "DPM-Solver++", FlowMatchEuler: "rectified flow" }; // others as they are

export function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}
