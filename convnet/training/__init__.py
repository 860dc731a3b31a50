"""The loop and its folder: settings, schedules, checkpoints, runs, and weights taken over from them."""
