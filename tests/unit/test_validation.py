"""The validation of names, images, hosts and environment variables."""

import re
import time
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deployments.engine import validation
from deployments.simulator import dotenv

settings.register_profile("quick", max_examples=200, deadline=None)
settings.load_profile("quick")

LABEL = re.compile(r"[a-z]([a-z0-9-]{1,28}[a-z0-9])", re.ASCII)
LIKE_A_NAME = st.text("abcxn019-AZ_.é \n/", max_size=34)


def accepts(validate: Callable[..., object], *arguments: object) -> bool:
    try:
        validate(*arguments)
    except ValueError:
        return False
    return True


def validate_env(pairs: dict[str, str]) -> None:
    """Validate as the product does: the keys of a template, and the values that a user enters."""
    for key, value in pairs.items():
        if not validation.ENV_KEY.fullmatch(key):
            raise ValueError(f"“{key}” is not a valid name.")
        validation.quote(value)


# -- names -------------------------------------------------------------------------------------------------------------


@given(st.one_of(LIKE_A_NAME, st.text(max_size=40), st.from_regex(LABEL, fullmatch=True)))
def test_an_accepted_name_is_a_dns_label_and_not_reserved(name: str) -> None:
    if accepts(validation.validate_name, name):
        assert validation.validate_name(name) == name
        assert LABEL.fullmatch(name)
        assert name.isascii()
        assert not name.startswith("xn--")
        assert name not in validation.RESERVED
        assert name.encode("idna").decode() == name


@given(st.from_regex(LABEL, fullmatch=True))
def test_a_dns_label_is_accepted_unless_it_is_reserved_or_punycode(name: str) -> None:
    assert accepts(validation.validate_name, name) is (name not in validation.RESERVED and name[2:4] != "--")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "a",
            "ab",
            "a" * 31,
            "Shop",
            "1shop",
            "-shop",
            "shop-",
            "sh op",
            " shop",
            "shop ",
            "shop.web",
            "shop_web",
        ),
        *("shop\n", "shop\r", "shop\0", "shop/..", "shöp", "ѕhop", "shop\u200b", "ｓhop", "xn--shp-sna", "ab--cd"),
        *(
            "$(id)",
            "`id`",
            "{{7*7}}",
            "${{x}}",
            "<b>",
            "shop;id",
            "www",
            "api",
            "admin",
            "dokploy",
            "traefik",
            "portal",
        ),
        *("shop１", "٣ab", "ª-bc", "shop\u0307", "ﬁsh"),
    ],
)
def test_a_name_that_is_not_a_dns_label_or_is_reserved_is_rejected(name: str) -> None:
    assert not accepts(validation.validate_name, name)


@pytest.mark.parametrize(
    "rejected",
    [
        lambda: validation.validate_name("Shop"),
        lambda: validation.validate_name("shop\n"),
        lambda: validation.validate_image("Web"),
        lambda: validation.validate_image("web", ["ghcr.io"]),
        lambda: validation.validate_host("a_b"),
        lambda: validation.quote("${{"),
    ],
)
def test_an_error_is_a_sentence(rejected: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"^.+\.$"):
        rejected()


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("Shop", "shop"),
        ("my_shop", "my-shop"),
        ("My Shop.2", "my-shop-2"),
        *((name, None) for name in ("WWW", "Ab", "A" * 31, "1Shop", "Ab  --", "shöp", "shop-", "Taken")),
    ],
)
def test_an_error_suggests_a_similar_name_only_if_that_one_is_accepted(name: str, suggestion: str | None) -> None:
    with pytest.raises(ValueError) as error:
        validation.validate_name(name, ["taken"])
    assert re.findall(r" Try (.*)\.$", str(error.value)) == ([suggestion] if suggestion else [])


def test_names_that_a_setting_reserves_are_rejected() -> None:
    assert accepts(validation.validate_name, "shop")
    assert not accepts(validation.validate_name, "shop", ["shop"])


# -- line breaks at the end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["\n", "\r", "\r\n", "\0", " ", "\u2028", "\x85", "\x0b"])
def test_a_line_break_at_the_end_is_never_accepted(ending: str) -> None:
    assert accepts(validation.validate_name, "shop")
    assert not accepts(validation.validate_name, "shop" + ending)
    assert accepts(validation.validate_image, "shop/web:1")
    assert not accepts(validation.validate_image, "shop/web:1" + ending)
    assert not accepts(validation.validate_image, "shop/web" + ending)
    digest = "shop/web@sha256:" + "a" * 64
    assert accepts(validation.validate_image, digest)
    assert not accepts(validation.validate_image, digest + ending)
    assert accepts(validation.validate_host, "apps.test")
    assert not accepts(validation.validate_host, "apps.test" + ending)
    assert accepts(validate_env, {"KEY": "1"})
    assert not accepts(validate_env, {"KEY" + ending: "1"})


# -- images ------------------------------------------------------------------------------------------------------------

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("image", "registry"),
    [
        ("nginx", "docker.io"),
        ("nginx:1.27-alpine", "docker.io"),
        ("library/nginx:latest", "docker.io"),
        ("docker.io/library/nginx", "docker.io"),
        ("ghcr.io/owner/name:v1.2.3", "ghcr.io"),
        ("git.app.flexinit.nl/oussamadouhou/oh-my-opencode-free:latest", "git.app.flexinit.nl"),
        ("localhost:5000/web", "localhost:5000"),
        ("localhost/web", "localhost"),
        ("registry:5000/a/b/c_d/e__f/g--h.i:T_a.g-1", "registry:5000"),
        ("127.0.0.1:5000/web", "127.0.0.1:5000"),
        (f"nginx@{DIGEST}", "docker.io"),
        (f"ghcr.io/owner/name:1@{DIGEST}", "ghcr.io"),
        ("web:" + "t" * 128, "docker.io"),
    ],
)
def test_an_image_is_accepted_only_from_an_allowed_registry(image: str, registry: str) -> None:
    assert validation.validate_image(image) == image
    assert accepts(validation.validate_image, image, [registry])
    assert not accepts(validation.validate_image, image, ["other.test"])


@pytest.mark.parametrize(
    "image",
    [
        *(
            "",
            " ",
            "web ",
            " web",
            "we b",
            "Web",
            "shop/Web",
            "ghcr.io/Owner/name",
            "web:",
            "web@",
            ":1",
            "/web",
            "web/",
        ),
        *("a//b", "web:1:2", "web@sha256:abc", f"web@md5:{'a' * 64}", f"web@sha256:{'A' * 64}", "web:-1", "web:.1"),
        *("web:" + "t" * 129, "a" * 256, "https://ghcr.io/a/b", "ghcr.io:port/a", "ghcr.io:123456/a", "-web", "web-"),
        *("web;id", "web|id", "web&id", "web$(id)", "web`id`", "web>x", "web<x", "web'x", 'web"x', "web\\x", "web*"),
        *("web?x", "web#x", "web!x", "web(x)", "web{x}", "web[x]", "web~x", "web%x", "web=x", "web,x", "web+x"),
        *("${{project.X}}", "--privileged", "-v/:/host", "web:1 --privileged", "wéb", "web:１", "ｗeb", "web\u200b"),
        *("../web", "./web", "a/../b", "web:../x", "a_-b", "a...b", "a___b", "user@host/web"),
    ],
)
def test_a_malformed_image_is_rejected(image: str) -> None:
    assert not accepts(validation.validate_image, image)


@given(st.one_of(st.text("abZ09.:/@_- $;\n", max_size=30), st.text(max_size=60)))
def test_an_accepted_image_has_no_meaning_for_a_shell_and_is_not_an_option(image: str) -> None:
    if accepts(validation.validate_image, image):
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*", image, re.ASCII)


@pytest.mark.parametrize("part", ["a", "a.", "a-", "a_", "a/", "a.a/", "-", "a:1/", "A"])
def test_no_text_takes_long_to_validate(part: str) -> None:
    text = part * (50_000 // len(part)) + "!"
    began = time.monotonic()
    for validate in (validation.validate_image, validation.validate_host, validation.validate_name):
        assert not accepts(validate, text)
    assert time.monotonic() - began < 10


# -- hosts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "apps.test", "a.b-c.d1", "ai.flexinit.nl", "x" * 63 + ".test", "1.test"])
def test_a_host_name_is_accepted(host: str) -> None:
    assert validation.validate_host(host) == host
    assert validation.validate_host(host.upper()) == host


@pytest.mark.parametrize(
    "host",
    [
        *("", ".", "a..b", ".a", "a.", "-a", "a-", "a-.b", "a_b", "*.a", "a b", "a:80", "http://a", "a/b", "é.test"),
        *("x" * 64, ".".join(["abcdefg"] * 32), "a\0", "[::1]", "a@b", "a%2e", "`a`", "a`) || PathPrefix(`/"),
    ],
)
def test_a_malformed_host_name_is_rejected(host: str) -> None:
    assert not accepts(validation.validate_host, host)


@given(st.text("abZ09-._* é\n", max_size=70))
def test_an_accepted_host_is_returned_as_lower_case_labels(host: str) -> None:
    if accepts(validation.validate_host, host):
        labels = validation.validate_host(host).split(".")
        assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", label) for label in labels)


# -- environment variables ---------------------------------------------------------------------------------------------

TRICKY = st.text("ab='\"`\\#$ {}\n\t:nr.\u2028é", max_size=12)
KEYS = st.sampled_from(["A", "B", "_c", "D1", "export", "PATH"])
PAIRS = st.dictionaries(KEYS, st.one_of(TRICKY, st.text(max_size=20)), max_size=4)


@settings(max_examples=300)
@given(PAIRS)
@example({"A": "ends in a backslash\\", "B": "# is no comment"})
@example({"A": "ends in a backslash\\", "B": "\nbegins with a line break"})
@example({"A": "C:\\new\\", "B": "#'`"})
@example({"A": "'\\", "B": "`#"})
@example({"export": "1", "A": " padded ", "B": ""})
@example({"A": "a\nB=2\n# c", "C": "export D=1"})
def test_every_accepted_variable_reaches_the_container_unchanged(pairs: dict[str, str]) -> None:
    if accepts(validate_env, pairs):
        text = validation.dotenv(pairs.items())
        assert dotenv.parse(text) == pairs
        assert dotenv.resolve(text, "PROJECT=1", "ENVIRONMENT=1") == [f"{key}={value}" for key, value in pairs.items()]
        text.encode()


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "two words", "a#b", "a #b", "$HOME", "${X}", "a=b=c", '{"a": "b"}', "C:\\new\\temp", "C:\\dir\\"),
        *("it's", "line\nline", "a\\nb", "`x`", "say \"hi\" and 'ho'", "ü €", "\t", "https://a.test/?b=c&d=e%20f#g"),
        "-----BEGIN KEY-----\nab+/=\n-----END KEY-----\n",
    ],
)
def test_common_values_are_accepted(value: str) -> None:
    assert dotenv.parse(validation.dotenv([("A", value), ("B", "# next")])) == {"A": value, "B": "# next"}


@pytest.mark.parametrize("value", ["a\0b", "a\rb", "a\r\n", "${{project.X}}", "${{", "'`\"", "'`\\n", "\ud800"])
def test_a_value_that_would_be_changed_is_rejected_with_a_sentence(value: str) -> None:
    with pytest.raises(ValueError, match=r"^.+\.$"):
        validation.quote(value)


@given(TRICKY)
def test_an_error_never_contains_the_value(value: str) -> None:
    value = f"canary-4711{value}\0"
    with pytest.raises(ValueError) as error:
        validation.quote(value)
    assert "canary" not in str(error.value)


@pytest.mark.parametrize("key", ["", "1A", "A B", "A=B", "A-B", "A.B", "É", "A\n", "A\0", "export A", "#A", "Ａ"])
def test_an_invalid_variable_name_is_rejected(key: str) -> None:
    assert not accepts(validate_env, {key: "1"})
