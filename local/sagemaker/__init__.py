"""A SageMaker double: hosting with data capture, processing jobs, and the events of both, on local processes.

It speaks the real API, so boto3's `sagemaker` and `sagemaker-runtime` clients work unchanged, and it runs the project's
own serving and monitor code as the containers. What it leaves out it refuses by name.
"""
