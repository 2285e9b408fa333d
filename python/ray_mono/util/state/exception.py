"""Errors of the state API."""


class RayStateApiException(Exception):
    """A question to the state API was not answered."""


class ServerUnavailable(RayStateApiException):
    """Who answers could not be reached."""


class DataSourceUnavailable(RayStateApiException):
    """What the answer is made of could not be reached."""
