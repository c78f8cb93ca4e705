"""Periodic cleanup: removes expired stacks and leftovers, and lists orphans. Repeating it changes nothing."""

import asyncio

from asgiref.sync import sync_to_async
from django.conf import settings

from ..background import repeat
from ..engine.dokploy import Dokploy
from ..engine.errors import DokployError
from ..engine.resources.ownership import list_marked_objects
from ..models import ExternalResource, Installation, Orphan, request_due_removals
from ..models.orphan import SCAN_SECONDS


async def sweep_periodically(dokploy: Dokploy) -> None:
    """Sweep every SWEEPER_SECONDS; 0 means never."""

    async def sweep() -> None:
        await sync_to_async(request_due_removals)()
        await scan_for_orphans(dokploy)

    if settings.SWEEPER_SECONDS:
        await repeat(sweep, settings.SWEEPER_SECONDS, "A sweep", expected=(DokployError,))


async def scan_for_orphans(dokploy: Dokploy) -> None:
    """List the objects at Dokploy that carry the portal's mark and that no record mentions.

    One worker scans every ORPHANS_SECONDS. The scan lists the objects twice, so that an object is not reported if it
    was removed between the first list and the reading of the records. A scan that fails is due again at once.
    """
    if await sync_to_async(Orphan.scan_is_due)(settings.ORPHANS_SECONDS):
        try:
            async with asyncio.timeout(SCAN_SECONDS):
                installation, recorded = await sync_to_async(_recorded_ids)()
                listed = await list_marked_objects(dokploy, installation, recorded)
                if unrecorded := await sync_to_async(Orphan.unrecorded)(listed):
                    still_there = {item.id for item in await list_marked_objects(dokploy, installation, recorded)}
                    unrecorded = [item for item in unrecorded if item.id in still_there]
            await sync_to_async(Orphan.report)(unrecorded)
        except Exception:
            await sync_to_async(Orphan.reset_scan)()
            raise


def _recorded_ids() -> tuple[str, set[str]]:
    """Return this installation's id, and the ids at Dokploy of all recorded objects that are not gone."""
    resources = ExternalResource.objects.existing()
    return Installation.current().id, set(resources.values_list("external_id", flat=True))
