"""Numbers in addresses: there is nothing at those that Python would not even read, of more than 4300 digits."""

from starlette.convertors import IntegerConvertor, register_url_convertor

NUMBER = "number"
"""What a route calls them."""


class _Number(IntegerConvertor):
    regex = "[0-9]{1,15}"


register_url_convertor(NUMBER, _Number())
