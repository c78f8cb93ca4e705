"""The spec of a deployment, as its row stores it."""

from dataclasses import dataclass
from typing import Any

from django.conf import settings

from .. import encryption
from ..engine.spec import StackSpec
from .installation import Installation
from .stack import Stack
from .template import Template


@dataclass(frozen=True, slots=True)
class StoredSpec:
    """The image, the variables and the limits of one deployment. Secret values are encrypted and kept separately.

    Attributes:
        public: the values that are stored in clear, in the form of the column `spec`.
        encrypted: the registry password and the secret variables, in the form of the column `spec_encrypted`.
    """

    public: dict[str, Any]
    encrypted: str

    @classmethod
    def freeze(cls, template: Template, parameters: dict[str, Any]) -> "StoredSpec":
        """Return the spec of a template with these parameters, as both are now."""
        secret = template.secret_keys()
        values = {key: _env_value(value) for key, value in parameters.items()}
        public = {
            "image": template.image,
            "port": template.port,
            "certificate": settings.STACK_CERTIFICATE,
            "registry": template.registry,
            "registry_username": template.registry_username,
            "memory_bytes": template.memory_bytes,
            "cpus": template.cpus,
            "health_path": template.health_path,
            "health_interval": template.health_interval,
            "health_timeout": template.health_timeout,
            "env": {key: value for key, value in values.items() if key not in secret},
        }
        secret_env = {key: value for key, value in values.items() if key in secret}
        return cls(public, encryption.encrypt({"registry_password": template.registry_password, "env": secret_env}))

    def stack_spec(self, stack: Stack, deployment_id: str) -> StackSpec:
        """Return the spec for the engine, with decrypted secrets. Raise encryption.DecryptionError."""
        secret = encryption.decrypt(self.encrypted) or {}
        public = {key: value for key, value in self.public.items() if key != "env"}
        env = {**self.public.get("env", {}), **secret.get("env", {})}
        return StackSpec(
            installation=Installation.current().id,
            stack=stack.pk,
            deployment=deployment_id,
            name=stack.name,
            host=stack.host,
            url=stack.url,
            env=tuple(env.items()),
            registry_password=secret.get("registry_password", ""),
            router_address=settings.STACK_ROUTER_ADDRESS,
            deploy_timeout=settings.DOKPLOY_DEPLOY_SECONDS,
            proof_seconds=settings.STACK_PROOF_SECONDS,
            secrets=tuple(filter(None, [secret.get("registry_password"), *secret.get("env", {}).values()])),
            **public,
        )

    def environment(self) -> dict[str, str]:
        """Return the variables, including the secret ones if they can be decrypted."""
        try:
            secret = encryption.decrypt(self.encrypted) or {}
        except encryption.DecryptionError:
            secret = {}
        return {**self.public.get("env", {}), **secret.get("env", {})}

    def has_readable_secrets(self) -> bool:
        """Return whether the secrets can be decrypted."""
        try:
            encryption.decrypt(self.encrypted)
        except encryption.DecryptionError:
            return False
        return True


def _env_value(value: Any) -> str:
    if value is None:
        return ""
    return ("true" if value else "false") if isinstance(value, bool) else str(value)
