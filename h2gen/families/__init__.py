"""What is particular to one family of transformers: one file per family, all under the same contract."""
