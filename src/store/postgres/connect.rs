//! Connections to the database: few, made when they are needed, each asked first whether what it acknowledges lasts.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime, Timeouts,
};
use tokio::time::timeout;
use tokio_postgres::{Client, SimpleQueryMessage};
use tokio_util::task::AbortOnDropHandle;

use super::error::{OpenError, Trouble};
use super::schema;
use super::tls::Tls;
use crate::config::Database;

/// The first version that will do.
pub(super) const OLDEST: u32 = 15;
/// A statement may take as long, and one second less in wait for a lock. Senders have got their 503 long before.
const STATEMENT_MAX: Duration = Duration::from_secs(10);
/// After so long nothing is waited for any more: the server, or the way to it, is gone without a word.
const SILENCE_MAX: Duration = Duration::from_secs(12);
/// A connection may take as long, and waiting for one.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// The settings of a session; a later failover may lead to a server that is set up otherwise, so each is asked. What it says
/// of its commits it keeps to, whatever its server is set to later.
///
/// A plan is made once, perhaps while the tables are empty, and kept until they are analysed; and how many rows a lease takes no
/// planner can know. So rows are only ever looked up one by one, by an index. Where several indexes would do, as that of what waits
/// or of all keys by their destination, statements have the value come with the rows to be looked up, so that only the whole
/// key finds them.
const SESSION: &str = "
    SET statement_timeout = '10s';
    SET lock_timeout = '9s';
    SET idle_in_transaction_session_timeout = '10s';
    SET default_transaction_isolation = 'read committed';
    SET work_mem = '32MB';
    SET jit = off;
    SET enable_seqscan = off;
    SET enable_hashjoin = off;
    SET enable_mergejoin = off;
    SELECT set_config('synchronous_commit', current_setting('synchronous_commit'), false), current_setting('fsync'),
        pg_is_in_recovery(),
        current_setting('server_version_num'), current_setting('server_version')";

/// What a session says about its server.
pub(super) struct Session {
    synchronous_commit: String,
    fsync: String,
    in_recovery: bool,
    version: u32,
    shown_version: String,
}

impl Session {
    /// Sets a session up.
    pub(super) async fn begin(client: &Client) -> Result<Self, tokio_postgres::Error> {
        let answers = client.simple_query(SESSION).await?;
        let row = answers.into_iter().find_map(|answer| match answer {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let text = |column| row.as_ref().and_then(|row| row.get(column)).unwrap_or_default().to_owned();
        Ok(Self {
            synchronous_commit: text(0),
            fsync: text(1),
            in_recovery: text(2) == "t",
            version: text(3).parse().unwrap_or(0),
            shown_version: text(4),
        })
    }

    /// Whether a gateway can work with it.
    pub(super) fn judge(self, database: &str) -> Result<(), OpenError> {
        let database = database.to_owned();
        let not_durable =
            |setting, found| OpenError::NotDurable { database: database.clone(), setting, found };
        if self.version / 10_000 < OLDEST {
            return Err(OpenError::TooOld { database, found: self.shown_version, oldest: OLDEST });
        }
        if self.in_recovery {
            return Err(OpenError::InRecovery { database });
        }
        match self.synchronous_commit.as_str() {
            "on" | "remote_apply" | "remote_write" => {}
            _ => return Err(not_durable("synchronous_commit", self.synchronous_commit)),
        }
        if self.fsync != "on" {
            return Err(not_durable("fsync", self.fsync));
        }
        Ok(())
    }
}

/// Judges the server, and has it hold our tables, which have to be fit for a gateway.
pub(super) async fn prepare(database: &Database) -> Result<(), OpenError> {
    let (client, _connection) = connect(database).await?;
    let shown = database.shown();
    let being_filled = schema::is_being_filled(&client).await;
    match being_filled.map_err(|error| schema::failure(&error, &shown, database))? {
        true => Err(OpenError::BeingFilled { database: shown }),
        false => Ok(()),
    }
}

/// A connection of its own to a server that has been judged, and holds our tables; it ends with the task.
pub(in crate::store) async fn connect(
    database: &Database,
) -> Result<(Client, AbortOnDropHandle<Result<(), tokio_postgres::Error>>), OpenError> {
    let tls = Tls::new(database).map_err(OpenError::Tls)?;
    let shown = database.shown();
    let connecting = timeout(CONNECT_MAX * 2, database.settings.connect(tls)).await;
    let (mut client, connection) = connecting
        .map_err(|_| OpenError::Unreachable {
            database: shown.clone(),
            reason: "no connection in time".to_owned(),
        })?
        .map_err(|error| schema::failure(&error, &shown, database))?;
    let connection = AbortOnDropHandle::new(tokio::spawn(connection));
    schema::prepare(&mut client, database).await?;
    Ok((client, connection))
}

/// At most `connections` of them.
pub(super) fn pool(database: &Database, connections: usize) -> Result<Pool, OpenError> {
    let tls = Tls::new(database).map_err(OpenError::Tls)?;
    let config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_config(database.settings.clone(), tls, config);
    let shown = database.shown();
    let timeouts =
        Timeouts { wait: Some(CONNECT_MAX), create: Some(CONNECT_MAX), recycle: Some(CONNECT_MAX) };
    let pool = Pool::builder(manager)
        .max_size(connections)
        .runtime(Runtime::Tokio1)
        .timeouts(timeouts)
        .post_create(Hook::async_fn(move |client, _| {
            let shown = shown.clone();
            Box::pin(async move {
                let session = Session::begin(client).await.map_err(HookError::Backend)?;
                session.judge(&shown).map_err(|error| HookError::message(error.to_string()))
            })
        }))
        .build();
    pool.map_err(|error| OpenError::Database { database: database.shown(), reason: error.to_string() })
}

/// A connection that somebody works on. Unless that comes to its end, also because nobody waits for it any more, the
/// connection is given up: nobody knows what is still to come on it, and a transaction may be open.
struct Lent(Option<Arc<Object>>);

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take().and_then(Arc::into_inner) {
            drop(Object::take(connection));
        }
    }
}

/// Does something on a connection. One on which nothing is heard for too long is given up.
pub(super) async fn on<T, E, F>(pool: &Pool, work: impl FnOnce(Arc<Object>) -> F) -> Result<T, Trouble>
where
    F: Future<Output = Result<T, E>>,
    Trouble: From<E>,
{
    let connection = Arc::new(pool.get().await?);
    let mut lent = Lent(Some(Arc::clone(&connection)));
    let done = match timeout(SILENCE_MAX, work(connection)).await {
        Ok(done) => done.map_err(Trouble::from),
        Err(_) => Err(Trouble::Gone(format!("nothing was heard for {} s", SILENCE_MAX.as_secs()))),
    };
    if !matches!(done, Err(Trouble::Gone(_))) {
        lent.0 = None;
    }
    done
}

/// The same in a transaction, of which nothing stays when the work fails.
pub(super) async fn transaction<T, E, F>(
    pool: &Pool,
    work: impl FnOnce(Arc<Object>) -> F,
) -> Result<T, Trouble>
where
    F: Future<Output = Result<T, E>>,
    E: Into<Trouble>,
{
    on(pool, |client| async move {
        // Both leave at once.
        let (begun, done) = tokio::join!(biased; client.batch_execute("BEGIN"), work(Arc::clone(&client)));
        let done = done.map_err(Into::into);
        let ended = client.batch_execute(if done.is_ok() { "COMMIT" } else { "ROLLBACK" }).await;
        begun?;
        let done = done?;
        ended?;
        Ok::<_, Trouble>(done)
    })
    .await
}

const _: () = assert!(STATEMENT_MAX.as_secs() < SILENCE_MAX.as_secs());
