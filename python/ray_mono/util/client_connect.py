"""The names of Ray Client, which ray_mono does not have yet."""

from ray_mono._private.later import refusing

connect = refusing("ray_mono.util.connect", "Ray Client is")
disconnect = refusing("ray_mono.util.disconnect", "Ray Client is")
