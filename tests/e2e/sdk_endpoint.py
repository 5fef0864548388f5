"""A model deployed as a user of the SageMaker SDK v3 writes it; prints the answer. Arguments: image, data, role."""

import sys

from sagemaker.core.resources import Endpoint, EndpointConfig, Model
from sagemaker.core.shapes import ContainerDefinition, ProductionVariant

image, model_data_uri, role = sys.argv[1:]
Model.create(
    model_name="sdk-model",
    primary_container=ContainerDefinition(image=image, model_data_url=model_data_uri),
    execution_role_arn=role,
)
variant = ProductionVariant(
    variant_name="all", model_name="sdk-model", instance_type="ml.m5.large", initial_instance_count=1
)
EndpointConfig.create(endpoint_config_name="sdk-config", production_variants=[variant])
endpoint = Endpoint.create(endpoint_name="sdk-endpoint", endpoint_config_name="sdk-config")
endpoint.wait_for_status("InService", poll=1)
answer = endpoint.invoke(body=b"x", content_type="text/plain").body.read()
endpoint.delete()
endpoint.wait_for_delete(poll=1)
# The SDK leaves its last line of progress open.
print(f"\n{answer.decode()}")
