"""Running a recipe: set-up, the loop that is blind to the method, checkpoints, and what a user sees meanwhile."""
