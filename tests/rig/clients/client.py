"""A workload that uses the PyPI client `spiffe` on the Workload API: prints what it was given as one JSON document.

Arguments: the socket, an audience, and how many certificates it waits for.
"""

import json
import queue
import sys
import time

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from spiffe import JwtSvid, WorkloadApiClient, X509Source


def in_order(context):
    """The leaf is issued by an authority of the bundle beside it, and its key is the one that came with it."""
    svid = context.default_svid
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    last = svid.cert_chain[-1]
    issuers = [root for root in bundle.x509_authorities if root.subject == last.issuer]
    for root in issuers:
        last.verify_directly_issued_by(root)
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    own = svid.private_key.public_key().public_bytes(*form)
    return bool(issuers) and own == svid.leaf.public_key().public_bytes(*form)


def tokens(client, audience, found):
    token = client.fetch_jwt_svid(audience={audience})
    bundles = client.fetch_jwt_bundles()
    found["jwtSubject"] = str(token.spiffe_id)
    found["jwtBundles"] = [f"spiffe://{bundle.trust_domain}" for bundle in bundles.bundles]
    bundle = bundles.get_bundle_for_trust_domain(token.spiffe_id.trust_domain)
    ways = {
        "agent": lambda audience: client.validate_jwt_svid(token.token, audience),
        "client": lambda audience: JwtSvid.parse_and_validate(token.token, bundle, {audience}),
    }
    for name, validate in ways.items():
        validate(audience)
        found["validatedBy"].append(name)
        try:
            validate("somebody else")
        except Exception:
            found["wrongRefused"].append(name)


def rotations(client, certificates, found):
    """Follows one stream until enough different certificates have come."""
    updates = queue.Queue()
    handle = client.stream_x509_contexts(updates.put, updates.put, retry_connect=False)
    until = time.monotonic() + 90
    while len(found["serials"]) < certificates:
        update = updates.get(timeout=until - time.monotonic())
        if isinstance(update, Exception):
            raise update
        if not in_order(update):
            raise ValueError("a certificate does not verify")
        serial = format(update.default_svid.leaf.serial_number, "x")
        if serial not in found["serials"]:
            found["serials"].append(serial)
    handle.cancel()


def main(socket, audience, certificates):
    socket = f"unix://{socket}"
    found = {"serials": [], "validatedBy": [], "wrongRefused": []}
    with X509Source(socket_path=socket, timeout_in_seconds=30) as source:
        found["id"] = str(source.svid.spiffe_id)
    with WorkloadApiClient(socket_path=socket, default_timeout=30) as client:
        bundles = client.fetch_x509_bundles().bundles
        found["x509Bundles"] = [f"spiffe://{bundle.trust_domain}" for bundle in bundles]
        tokens(client, audience, found)
        rotations(client, int(certificates), found)
    print(json.dumps(found))


main(*sys.argv[1:])
