"""Many pictures in one run: prompt files, jobs, the queue, worker processes and the journal."""
