"""Evaluation of a frozen encoder: images -> features -> score, by kNN or a linear classifier; RankMe without labels."""
