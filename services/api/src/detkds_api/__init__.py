"""The HTTP service: searches, distillations, results, datasets, and a dashboard. No torch."""
