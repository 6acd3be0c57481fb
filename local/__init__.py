"""The embedded AWS: ministack and a SageMaker double, so that the whole stack runs on one machine."""
