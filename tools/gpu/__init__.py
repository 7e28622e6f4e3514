"""What ``tools/gpu_day.py`` runs on the GPU, part by part."""
