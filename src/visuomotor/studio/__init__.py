"""The studio: a local page that shows the data, and a policy at work."""
