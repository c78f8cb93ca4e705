"""The output of an image pull, as `docker pull` prints it without a terminal."""

from collections.abc import Iterator

from .container_engine import digest


def registry_host(image: str) -> str:
    """Return the registry in an image name, empty for Docker Hub (docs.docker.com, "image name")."""
    first, slash, _ = image.partition("/")
    is_host = slash and ("." in first or ":" in first or first == "localhost")
    return first if is_host else ""


def has_no_host(image: str) -> bool:
    """Return whether the registry is below `.invalid`, a domain that never resolves (RFC 2606)."""
    return registry_host(image).rsplit(":", 1)[0].endswith(".invalid")


def pull_lines(image: str) -> Iterator[str]:
    repository, at, checksum = image.partition("@")
    tag = "latest"
    if ":" in repository.rpartition("/")[2]:
        repository, _, tag = repository.rpartition(":")
    if not registry_host(image) and "/" not in repository:
        repository = f"library/{repository}"
    yield f"{checksum if at else tag}: Pulling from {repository}"
    layers = [digest(f"{image} {number}")[:12] for number in range(4)]
    for layer in layers:
        yield f"{layer}: Pulling fs layer"
    for layer in layers:
        yield f"{layer}: Download complete"
    for layer in layers:
        yield f"{layer}: Pull complete"
    yield f"Digest: {checksum if at else 'sha256:' + digest(image)}"
    yield f"Status: Downloaded newer image for {image}"
    yield image
