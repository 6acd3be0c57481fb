"""The embedded AWS: ministack and a SageMaker double, which run the whole stack on one machine."""
