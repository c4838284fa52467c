"""The network, the noise, the samplers, and the policy that acts. Knows nothing of data sets on disk."""
