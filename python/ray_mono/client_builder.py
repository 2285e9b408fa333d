"""The names of Ray Client, which ray_mono does not have yet."""

from ray_mono._private.later import refusing

ClientBuilder = refusing("ray_mono.ClientBuilder", "Ray Client is")
client = refusing("ray_mono.client", "Ray Client is")
