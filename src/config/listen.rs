//! The sections that a gateway has once: `[listen]`, `[limits]`, `[admin]`, `[store]`, `[dedup]`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::networks::networks;
use super::secrets;
use super::values::{
    BODY_MAX, Context, DAY, DURATION_MAX, MILLISECOND, SECOND, Unique, choice, duration, file, integer, list,
    name, public_url, size, size_if_given,
};
use super::{Admin, AdminToken, ClientCa, Database, Limits, Listen, Role, StoreConfig, Tls};
use crate::reader::{Table, Value};

const ADDRESS: &str = "an IP address and a port, such as \"0.0.0.0:8080\" or \"[::1]:8080\"";
/// Supervisors wait for less; who needs more has something else in mind.
const DRAIN_MAX: Duration = Duration::from_mins(10);

/// `[listen]` and `[admin]`, which must not claim the same address.
pub(super) struct Listening {
    pub(super) listen: Listen,
    /// What providers were told, where the source does not say otherwise.
    pub(super) public_url: Option<String>,
    /// Whether clients are asked for certificates, as far as that could be read.
    pub(super) asks_clients: bool,
    pub(super) admin: Admin,
}

pub(super) fn read(root: &Table<'_>, context: &Context<'_>) -> Listening {
    let listen_table = root.section("listen");
    let admin_table = root.section("admin");
    let listen = read_listen(&listen_table, context);
    let admin = read_admin(&admin_table, context);
    let port = listen.address.port();
    let same_address = listen.address.ip() == admin.address.ip()
        || listen.address.ip().is_unspecified()
        || admin.address.ip().is_unspecified();
    if port != 0 && port == admin.address.port() && same_address {
        let message = format!("both listeners would listen on {}", admin.address);
        let help = "give `listen.address` and `admin.address` different ports";
        let address = admin_table.get("address").or_else(|| listen_table.get("address"));
        if let Some(address) = address {
            address.wrong(message, help);
        }
    }
    let asks_clients =
        listen_table.get("tls").is_some() && listen.tls.as_ref().is_none_or(|tls| tls.client_ca.is_some());
    Listening { listen, public_url: public_url(&listen_table), asks_clients, admin }
}

fn read_listen(table: &Table<'_>, context: &Context<'_>) -> Listen {
    let help = "above 0 and below 5s, since providers give up after that, some after 3s";
    Listen {
        address: address(table, SocketAddr::from(([0, 0, 0, 0], 8080))),
        tls: table.get("tls").and_then(|value| read_tls(&value, context)),
        trusted_proxies: networks(table, "trusted_proxies"),
        ack_deadline: duration(
            table,
            "ack_deadline",
            Duration::from_millis(2_500),
            MILLISECOND..=Duration::from_millis(4_999),
            help,
        ),
    }
}

fn read_tls(value: &Value<'_>, context: &Context<'_>) -> Option<Tls> {
    const CERT: &str = "a file with the certificate chain in PEM, leaf first";
    const KEY: &str = "a file with the private key in PEM";
    const CLIENT_CA: &str = "a file with the certificates of the authorities in PEM, as `client_ca`";
    let table = value.table("a table such as { cert = \"cert.pem\", key = \"key.pem\" }")?;
    let cert = table.require("cert", CERT).and_then(|value| file(&value, CERT, context));
    let key = table.require("key", KEY).and_then(|value| file(&value, KEY, context));
    let required = choice(&table, "client_certificate", true, &[("required", true), ("optional", false)]);
    let given = table.get("client_ca");
    if let (None, Some(value)) = (&given, table.get("client_certificate")) {
        value.wrong("`client_certificate` has no effect without `client_ca`", CLIENT_CA);
    }
    let client_ca = match given {
        Some(value) => Some(ClientCa { path: file(&value, CLIENT_CA, context)?, required }),
        None => None,
    };
    Some(Tls { cert: cert?, key: key?, client_ca })
}

fn address(table: &Table<'_>, default: SocketAddr) -> SocketAddr {
    let parse = |text: &str| text.parse::<SocketAddr>();
    table.get("address").and_then(|value| value.parse(parse, ADDRESS)).unwrap_or(default)
}

fn read_admin(table: &Table<'_>, context: &Context<'_>) -> Admin {
    const HELP: &str =
        "a list of tables such as { name = \"ops\", role = \"operator\", env = \"COUNTERSIGN_ADMIN_TOKEN\" }";
    let address = address(table, SocketAddr::from(([127, 0, 0, 1], 8081)));
    let unique = Unique::default();
    let given = table.get("tokens");
    if let Some(tokens) = &given {
        tokens.conceal(&["name", "role", "env", "file"]);
    }
    let tokens = list(table, "tokens", HELP, |value| read_token(&value.table(HELP)?, &unique, context));
    if given.is_none_or(|tokens| tokens.is_empty_array())
        && !address.ip().is_loopback()
        && let Some(value) = table.get("address")
    {
        value.wrong(
            format!("{address} can be reached from other machines, and there are no `admin.tokens`"),
            "listen on 127.0.0.1, or add `tokens = [{ name = \"ops\", role = \"operator\", env = \"…\" }]`",
        );
    }
    Admin { address, tokens: tokens.unwrap_or_default() }
}

fn read_token(table: &Table<'_>, unique: &Unique, context: &Context<'_>) -> Option<AdminToken> {
    const ROLES: [(&str, Role); 2] = [("viewer", Role::Viewer), ("operator", Role::Operator)];
    let name = table.require("name", "who has the token, for the audit log").and_then(|value| {
        let name = name(&value)?;
        unique.take(name, &value, "each token needs a name of its own", context).then_some(name)
    });
    let role = table.require("role", "\"viewer\" or \"operator\"").and_then(|value| value.one_of(&ROLES));
    let found = secrets::find_unguessable(table, context);
    let token = found.and_then(|found| {
        if found.secret.expose().iter().all(u8::is_ascii_graphic) {
            return Some(found.secret);
        }
        let message = "the token has characters that an Authorization header cannot have";
        found.at.wrong(message, secrets::MAKE_ONE);
        None
    });
    Some(AdminToken { name: Arc::from(name?), role: role?, token: token? })
}

/// `[limits]`: those of the listener, and the largest body of sources that do not say otherwise.
pub(super) struct Limited {
    pub(super) limits: Limits,
    pub(super) body: u64,
}

pub(super) fn read_limits(table: &Table<'_>) -> Limited {
    const MIB: u64 = 1 << 20;
    let body = size(table, "body", MIB, 1..=BODY_MAX, "bodies are held in memory");
    let limits = Limits {
        in_flight: size(
            table,
            "in_flight",
            256 * MIB,
            1 << 10..=1 << 40,
            "the memory for bodies of requests in progress",
        ),
        connections: integer(table, "connections", 10_000, 1..=1_000_000),
        connections_per_address: integer(table, "connections_per_address", 256, 1..=1_000_000),
        head_read: duration(
            table,
            "head_read",
            Duration::from_secs(10),
            100 * MILLISECOND..=Duration::from_mins(10),
            "for first byte, PROXY header, TLS handshake and head, each",
        ),
        body_read: duration(
            table,
            "body_read",
            Duration::from_secs(30),
            100 * MILLISECOND..=Duration::from_hours(1),
            "for the whole body",
        ),
        // The HTTP library reads heads into a buffer of at least 8 KiB.
        header_bytes: usize::try_from(size(
            table,
            "header_bytes",
            32 << 10,
            8 << 10..=MIB,
            "all header lines of a request together",
        ))
        .unwrap_or(32 << 10),
        drain: duration(
            table,
            "drain",
            Duration::from_secs(20),
            SECOND..=DRAIN_MAX,
            "from the signal to stop until the process has ended",
        ),
        drain_delay: duration(
            table,
            "drain_delay",
            Duration::ZERO,
            Duration::ZERO..=DRAIN_MAX,
            "as long as load balancers need to notice that it is not ready",
        ),
    };
    if limits.drain < limits.drain_delay + SECOND
        && let Some(value) = table.get("drain_delay").or_else(|| table.get("drain"))
    {
        value.wrong(
            "`limits.drain_delay` leaves less than 1s of `limits.drain`, too little to finish what is in progress",
            "a `drain` that is some seconds longer than `drain_delay`, of which it is a part",
        );
    }
    if limits.in_flight < body
        && let Some(value) = table.get("in_flight").or_else(|| table.get("body"))
    {
        value.wrong(
            "`limits.in_flight` is smaller than `limits.body`: the largest bodies could never be accepted",
            "at least `limits.body`, better a hundred times as much",
        );
    }
    Limited { limits, body }
}

/// `[dedup]`
pub(super) struct Dedup<'d> {
    pub(super) ttl: Duration,
    /// Where `ttl` stands, when it is given.
    pub(super) at: Option<Value<'d>>,
    pub(super) cache_entries: u64,
}

pub(super) const TTL: &str = "how long a delivery id is remembered";

pub(super) fn read_dedup<'d>(table: &Table<'d>) -> Dedup<'d> {
    Dedup {
        ttl: duration(table, "ttl", 7 * DAY, SECOND..=DURATION_MAX, TTL),
        at: table.get("ttl"),
        cache_entries: integer(table, "cache_entries", 1_000_000, 1..=100_000_000),
    }
}

pub(super) fn read_store(table: &Table<'_>, context: &Context<'_>) -> StoreConfig {
    const PATH: &str = "a directory, relative to the configuration file; created when missing";
    let shared =
        table.get("engine").and_then(|engine| engine.one_of(&[("sqlite", false), ("postgres", true)]));
    let connections = integer(table, "connections", 10, 2..=100);
    let database = if shared == Some(true) {
        read_url(table, context)
    } else {
        if let Some(url) = table.get("url") {
            url.conceal(&["env", "file"]);
            url.doubtful("`url` has no effect: it belongs to the engine `postgres`", "leave it out");
        }
        if let Some(connections) = table.get("connections") {
            connections
                .doubtful("`connections` has no effect: it belongs to the engine `postgres`", "leave it out");
        }
        None
    };
    let path = table.get("path").and_then(|value| {
        let path = context.directory.join(value.text()?);
        if value.text()?.trim().is_empty() {
            value.wrong("the path is empty", PATH);
        } else if path.exists() && !path.is_dir() {
            value.wrong(format!("{} is not a directory", path.display()), PATH);
        }
        Some(path)
    });
    let retention = table.section("retention");
    let keep = |key| duration(&retention, key, 7 * DAY, SECOND..=DURATION_MAX, "how long it is kept");
    StoreConfig {
        database,
        connections,
        path: path.unwrap_or_else(|| context.directory.join("data")),
        disk_reserve: size_if_given(
            table,
            "disk_reserve",
            0..=1 << 50,
            "free space below which nothing is accepted",
        ),
        keep_delivered: keep("delivered"),
        keep_quarantined: keep("quarantine"),
    }
}

fn read_url(table: &Table<'_>, context: &Context<'_>) -> Option<Database> {
    const URL: &str = "such as { env = \"DATABASE_URL\" }, which holds \
        postgres://user:password@host:5432/name?sslmode=verify-full";
    let Some(value) = table.get("url") else {
        table.missing("url", "the engine `postgres` needs to know where its database is", URL);
        return None;
    };
    value.conceal(&["env", "file"]);
    let found = secrets::find(&value.table(URL)?, context)?;
    let parsed = std::str::from_utf8(found.secret.expose())
        .map_err(|_| "it is not UTF-8".to_owned())
        .and_then(|url| Database::parse(url.trim()));
    parsed.map_err(|problem| found.at.wrong(format!("this is no URL of a database: {problem}"), URL)).ok()
}
