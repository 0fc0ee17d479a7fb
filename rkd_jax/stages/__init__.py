"""The stages of an experiment: teachers, training, evaluation."""
