"""Safety Pretraining (arXiv:2504.16980): harm scores and harmfulness tags."""
