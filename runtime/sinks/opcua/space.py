"""The address space of the OPC UA server: its nodes by name, and how they are written."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from edgead.runtime.errors import ConfigError
from edgead.runtime.sinks.opcua.station import COUNTERS, RESULT, STATE
from edgead.runtime.sinks.part_ids import PartIds
from edgead.runtime.version import __version__

if TYPE_CHECKING:
    from asyncua import Node, Server

NAMESPACE = "urn:edgead:vision"

# Objects below VisionSystem, and their variables with OPC UA types.
_OBJECTS: dict[str, dict[str, str]] = {
    "VisionStateMachine": dict.fromkeys(STATE, "String"),
    "ResultManagement": {"PartIsOk": "Boolean", **RESULT},
    "Diagnostics": dict.fromkeys(COUNTERS, "UInt64"),
}
_PARTS = {"PartIdState": "String", "PartIdProblem": "String", "PartIdsTaken": "UInt64"}


class Bad(NamedTuple):
    """In place of a value: there is none, and a StatusCode of this name says why."""

    status: str


class Space:
    """Builds the nodes and writes them.

    Each variable's NodeId is its own name (``ns=2;s=Decision``) in the namespace `NAMESPACE`.
    """

    def __init__(self, ids: PartIds | None) -> None:
        self._ids = ids
        self._nodes: dict[str, Node] = {}
        self._types: dict[str, Any] = {}
        self._event: Any = None

    async def build(self, server: Server) -> None:
        """Add everything to a server that does not listen yet."""
        from asyncua import ua

        space = await server.register_namespace(NAMESPACE)
        vision = await server.nodes.objects.add_object(ua.NodeId("VisionSystem", space), f"{space}:VisionSystem")
        await self._add(vision, space, {"Heartbeat": "UInt32", "SoftwareVersion": "String"})
        for name, kinds in _OBJECTS.items():
            await self._add(await vision.add_object(ua.NodeId(name, space), f"{space}:{name}"), space, kinds)
        if self._ids is not None:
            parts = await vision.add_object(ua.NodeId("PartIds", space), f"{space}:PartIds")
            await self._add(parts, space, _PARTS)
            await self._add_next_part(server, parts, space, self._ids)
        kinds = {**RESULT, "PartIsOk": "Boolean"}
        properties = [(name, getattr(ua.VariantType, kind)) for name, kind in kinds.items()]
        event = await server.create_custom_event_type(space, "ResultReadyEventType", properties=properties)
        self._event = await server.get_event_generator(event, emitting_node=ua.ObjectIds.Server)
        texts = dict(zip(STATE, ("Preoperational", "", ""), strict=True))
        nothing = dict.fromkeys(RESULT, Bad("BadWaitingForInitialData"))
        await self.write({"Heartbeat": 0, "SoftwareVersion": __version__, "PartIsOk": False, **texts, **nothing})
        await self.write(dict.fromkeys(COUNTERS, 0))

    async def write(self, values: Mapping[str, Any]) -> None:
        """Write values by name, in their order; NaN and `Bad` become a bad StatusCode without a value."""
        from asyncua import ua

        now = datetime.datetime.now(datetime.timezone.utc)
        params = ua.WriteParameters()
        for name, value in values.items():
            if isinstance(value, float) and math.isnan(value):
                value = Bad("BadNoData")
            bad = isinstance(value, Bad)
            variant = ua.Variant(None, ua.VariantType.Null) if bad else ua.Variant(value, self._types[name])
            status = ua.StatusCode(getattr(ua.StatusCodes, value.status if isinstance(value, Bad) else "Good"))
            data = ua.DataValue(variant, status, now, now)
            params.NodesToWrite.append(ua.WriteValue(self._nodes[name].nodeid, ua.AttributeIds.Value, None, data))
        for result in await self._nodes["Heartbeat"].session.write(params):
            result.check()

    async def tell(self, fields: Mapping[str, Any]) -> None:
        """Send ``ResultReadyEventType`` with all of a result: what an event holds belongs together."""
        for name, value in fields.items():
            setattr(self._event.event, name, value)
        await self._event.trigger(message=f"{fields['Decision']} {fields['PartId']}".strip())

    def part_fields(self) -> dict[str, Any]:
        """Return how the announced part ids stand; nothing where none are taken."""
        if self._ids is None:
            return {}
        problem = self._ids.problem
        state = "OutOfStep" if problem is not None else "Announced" if self._ids.waiting else "Idle"
        return dict(zip(_PARTS, (state, problem or "", self._ids.taken), strict=True))

    async def _add(self, parent: Node, space: int, kinds: Mapping[str, str]) -> None:
        from asyncua import ua

        for name, kind in kinds.items():
            variant = getattr(ua.VariantType, kind)
            self._types[name] = variant
            self._nodes[name] = await parent.add_variable(
                ua.NodeId(name, space), f"{space}:{name}", ua.get_default_value(variant), variant
            )

    async def _add_next_part(self, server: Server, parts: Node, space: int, ids: PartIds) -> None:
        from asyncua import ua
        from asyncua.common.callback import CallbackType

        node = await parts.add_variable(ua.NodeId("NextPartId", space), f"{space}:NextPartId", "")
        await node.set_writable()

        def announce(_data: Any, _attribute: Any, value: Any) -> None:
            text = None if value.Value is None else value.Value.Value
            if not isinstance(text, str):
                ids.refuse("no text")
                raise ua.UaStatusCodeError(ua.StatusCodes.BadTypeMismatch)
            try:
                ids.announce(text)
            except ConfigError as error:
                out_of_step = ids.problem is not None
                code = ua.StatusCodes.BadInvalidState if out_of_step else ua.StatusCodes.BadOutOfRange
                raise ua.UaStatusCodeError(code) from error

        def waiting(_node: Any, _attribute: Any) -> Any:
            return ua.DataValue(ua.Variant(ids.waiting, ua.VariantType.String))

        async def refuse_slices(event: Any, _service: Any) -> None:
            # The library ignores the range, and would take the piece for the whole id.
            if any(item.IndexRange and item.NodeId == node.nodeid for item in event.request_params.NodesToWrite):
                ids.refuse("a piece of a text")
                raise ua.UaStatusCodeError(ua.StatusCodes.BadIndexRangeInvalid)

        server.iserver.set_attribute_value_callback(node.nodeid, waiting)
        server.iserver.set_attribute_value_setter(node.nodeid, announce)
        server.subscribe_server_callback(CallbackType.PreWrite, refuse_slices)
