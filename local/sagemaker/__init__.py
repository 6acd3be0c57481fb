"""A SageMaker double: hosting with data capture, processing jobs and their events, on local processes.

It implements the API, so boto3's `sagemaker` and `sagemaker-runtime` clients work unchanged, and it runs the project's
serving and monitor code in place of the containers. It refuses what it does not implement, with its name.
"""
