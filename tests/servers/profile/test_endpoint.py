"""URLs in the forms that users have."""

import pytest

from servers.profile.client import ProfileError
from servers.profile.endpoint import split_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:8000", ("http://h:8000", None, "")),
        ("http://h:8000/", ("http://h:8000", None, "")),
        ("http://h:8000/v1", ("http://h:8000", "/v1", "")),
        ("http://h:8000/v1/", ("http://h:8000", "/v1", "")),
        ("https://h/ns/model", ("https://h/ns/model", None, "")),
        ("https://h/ns/model/v1", ("https://h/ns/model", "/v1", "")),
        ("https://h/v1beta/openai", ("https://h/v1beta/openai", None, "")),
        ("http://h/v1/chat/completions", ("http://h", "/v1", "")),
        ("http://h/v1/completions/", ("http://h", "/v1", "")),
        (
            "https://h/openai/deployments/d/chat/completions?api-version=2024-06-01",
            ("https://h/openai/deployments/d", "", "api-version=2024-06-01"),
        ),
        ("http://[::1]:8000/v3", ("http://[::1]:8000", "/v3", "")),
    ],
)
def test_base_url_root_and_query(url, expected):
    assert split_url(url) == expected


@pytest.mark.parametrize("url", ["", "h:8000", "ftp://h", "http://", "http://h:99999", "/v1"])
def test_an_invalid_url_is_refused(url):
    with pytest.raises(ProfileError, match=r"is not a URL|no valid port"):
        split_url(url)
