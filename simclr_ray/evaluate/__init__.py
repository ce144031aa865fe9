"""Evaluation: images -> frozen features -> score, by kNN or a linear classifier; fine-tuning; RankMe without labels."""
