"""Many pictures, none of them lost: prompt files, jobs, the queue, workers and the journal."""
