"""How good pictures are: metrics, the small classifiers that judge them, and how those are trained."""
