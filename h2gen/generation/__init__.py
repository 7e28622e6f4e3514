"""From settings to pictures: sessions, solvers, what to do when memory runs out, saving."""
