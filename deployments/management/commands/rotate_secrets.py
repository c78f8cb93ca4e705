from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from deployments import encryption
from deployments.models import Deployment, Template


class Command(BaseCommand):
    help = "Re-encrypt every stored secret with the first of ENCRYPTION_KEYS. The other keys can be removed afterwards."

    def handle(self, *args: Any, **options: Any) -> None:
        with transaction.atomic():
            count = 0
            for model, field in ((Template, "registry_password_encrypted"), (Deployment, "spec_encrypted")):
                for id, encrypted in model.objects.exclude(**{field: ""}).values_list("pk", field):
                    try:
                        model.objects.filter(pk=id).update(**{field: encryption.rotate(encrypted)})
                    except encryption.DecryptionError as error:
                        raise CommandError(f"{model.__name__} {id}: {error} Nothing was changed.") from None
                    count += 1
        self.stdout.write(f"Encrypted {count} secrets with the first key.")
