"""Verifies what a backend got with the providers' own SDKs, unmodified. The clock is set from outside of the process."""

import base64
import json
import sys

import slack_sdk.signature
import standardwebhooks
import stripe
import svix


def verify(got):
    headers, body, secret = got["headers"], base64.b64decode(got["body"]), got["secret"]
    match got["provider"]:
        case "stripe":
            stripe.WebhookSignature.verify_header(body.decode(), headers["stripe-signature"], secret, 300)
        case "slack":
            verifier = slack_sdk.signature.SignatureVerifier(secret)
            assert verifier.is_valid_request(body, headers), "slack_sdk says no"
        case "svix":
            svix.Webhook(secret).verify(body, headers)
        case "standard-webhooks":
            standardwebhooks.Webhook(secret).verify(body, headers)
        case other:
            raise ValueError(other)


for got in json.load(open(sys.argv[1])):
    verify(got)
    # Neither a body that is changed nor another secret passes: the verifier does look.
    for changed in ({"body": base64.b64encode(b'{"id":"evt_2"}').decode()}, {"secret": got["other"]}):
        try:
            verify({**got, **changed})
        except Exception:
            continue
        sys.exit(f"{got['provider']}: {list(changed)} is not looked at")
    print("verified", got["provider"])
