"""Cities where people live, shop and travel: real country codes, time zones and coordinates."""

from typing import NamedTuple


class City(NamedTuple):
    """A place with people and shops.

    Args:
        name: English name.
        country: ISO 3166-1 alpha-2.
        zone: IANA time zone.
        latitude: degrees north.
        longitude: degrees east.
        weight: relative number of residents, and of shops.
        holiday_weight: relative number of trips that go there.
    """

    name: str
    country: str
    zone: str
    latitude: float
    longitude: float
    weight: float
    holiday_weight: float


CITIES = (
    City("Amsterdam", "NL", "Europe/Amsterdam", 52.3702, 4.8952, 5, 2),
    City("Rotterdam", "NL", "Europe/Amsterdam", 51.9225, 4.4792, 4, 1),
    City("Utrecht", "NL", "Europe/Amsterdam", 52.0907, 5.1214, 2, 0.5),
    City("Brussels", "BE", "Europe/Brussels", 50.8503, 4.3517, 3, 1),
    City("Antwerp", "BE", "Europe/Brussels", 51.2194, 4.4025, 2, 0.5),
    City("Berlin", "DE", "Europe/Berlin", 52.5200, 13.4050, 5, 2),
    City("Hamburg", "DE", "Europe/Berlin", 53.5511, 9.9937, 3, 1),
    City("Munich", "DE", "Europe/Berlin", 48.1351, 11.5820, 3, 1.5),
    City("Cologne", "DE", "Europe/Berlin", 50.9375, 6.9603, 3, 1),
    City("Dublin", "IE", "Europe/Dublin", 53.3498, -6.2603, 5, 1.5),
    City("Cork", "IE", "Europe/Dublin", 51.8985, -8.4756, 2, 0.5),
    City("Galway", "IE", "Europe/Dublin", 53.2707, -9.0568, 1, 0.5),
    City("New York", "US", "America/New_York", 40.7128, -74.0060, 6, 2.5),
    City("Philadelphia", "US", "America/New_York", 39.9526, -75.1652, 3, 0.5),
    City("Boston", "US", "America/New_York", 42.3601, -71.0589, 2, 0.5),
    City("Chicago", "US", "America/Chicago", 41.8781, -87.6298, 3, 1),
    City("Denver", "US", "America/Denver", 39.7392, -104.9903, 1, 0.5),
    City("Los Angeles", "US", "America/Los_Angeles", 34.0522, -118.2437, 3, 1.5),
    City("London", "GB", "Europe/London", 51.5074, -0.1278, 6, 2.5),
    City("Manchester", "GB", "Europe/London", 53.4808, -2.2426, 3, 0.5),
    City("Bristol", "GB", "Europe/London", 51.4545, -2.5879, 2, 0.5),
    City("Paris", "FR", "Europe/Paris", 48.8566, 2.3522, 6, 2.5),
    City("Lyon", "FR", "Europe/Paris", 45.7640, 4.8357, 3, 0.5),
    City("Lille", "FR", "Europe/Paris", 50.6292, 3.0573, 2, 0.5),
    City("Vienna", "AT", "Europe/Vienna", 48.2082, 16.3738, 5, 1.5),
    City("Graz", "AT", "Europe/Vienna", 47.0707, 15.4395, 2, 0.5),
    City("Salzburg", "AT", "Europe/Vienna", 47.8095, 13.0550, 1, 1),
    City("Barcelona", "ES", "Europe/Madrid", 41.3874, 2.1686, 2, 3),
    City("Palma", "ES", "Europe/Madrid", 39.5696, 2.6502, 1, 3),
    City("Lisbon", "PT", "Europe/Lisbon", 38.7223, -9.1393, 1, 2),
    City("Rome", "IT", "Europe/Rome", 41.9028, 12.4964, 1.5, 2.5),
    City("Athens", "GR", "Europe/Athens", 37.9838, 23.7275, 1, 1.5),
    City("Zurich", "CH", "Europe/Zurich", 47.3769, 8.5417, 1, 1),
    City("Istanbul", "TR", "Europe/Istanbul", 41.0082, 28.9784, 1, 1),
    City("Marrakesh", "MA", "Africa/Casablanca", 31.6295, -7.9811, 0.5, 0.8),
    City("Dubai", "AE", "Asia/Dubai", 25.2048, 55.2708, 0.5, 0.8),
    City("Bangkok", "TH", "Asia/Bangkok", 13.7563, 100.5018, 0.5, 0.8),
    City("Tokyo", "JP", "Asia/Tokyo", 35.6762, 139.6503, 0.5, 0.8),
    City("Cancun", "MX", "America/Cancun", 21.1619, -86.8515, 0.5, 1),
)
ZONES = tuple(dict.fromkeys(city.zone for city in CITIES))
