"""How good a policy is: success with its interval, videos, the report."""
