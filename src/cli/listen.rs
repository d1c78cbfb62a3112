//! `countersign listen`: a gateway for one provider while its receiver is being developed. All it has is in a temporary
//! directory; it prints the URL to give to the provider, a line per delivery, and why what it refuses is refused.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use countersign::app::App;
use countersign::clock::Clock;
use countersign::config;
use countersign::verify::preset;
use http::{Request, Uri};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use super::http::Client;
use super::{Failure, chain, full_runtime, say};

mod relay;
mod watch;

use relay::Relay;
use watch::Watch;

/// How soon a refusal is told.
const LOOK: Duration = Duration::from_millis(250);
/// What the configuration calls the secret, which so is on no disk.
const SECRET: &str = "COUNTERSIGN_LISTEN_SECRET";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The provider that sends; `countersign providers` lists them
    #[arg(long, value_name = "P")]
    provider: String,
    /// The secret shared with it; some that publish their keys or hand their secret over need none
    #[arg(long, value_name = "S", env = "COUNTERSIGN_LISTEN_SECRET", hide_env_values = true)]
    secret: Option<String>,
    /// Where your application listens
    #[arg(long, value_name = "URL")]
    forward_to: Uri,
    /// Where the provider sends to; a free port otherwise
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where operators look; a free port otherwise
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    admin: SocketAddr,
    /// What the provider was told in place of the address, such as the tunnel's URL; some sign it
    #[arg(long, value_name = "URL")]
    public_url: Option<Uri>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let provider = &arguments.provider;
    if preset(provider).is_none() {
        let text = format!("there is no provider `{provider}`; `countersign providers` lists them");
        return Err(Failure::Usage(text));
    }
    if arguments.forward_to.host().is_none() || arguments.forward_to.scheme().is_none() {
        let text = format!("--forward-to {}: use http://HOST:PORT/PATH", arguments.forward_to);
        return Err(Failure::Usage(text));
    }
    full_runtime()?.block_on(listen(arguments))
}

async fn listen(arguments: &Arguments) -> Result<(), Failure> {
    let handled = |kind| signal(kind).map_err(|error| Failure::Io(format!("cannot handle signals: {error}")));
    let mut interrupt = handled(SignalKind::interrupt())?;
    let mut terminate = handled(SignalKind::terminate())?;
    let directory = tempfile::Builder::new()
        .prefix("countersign-listen-")
        .tempdir()
        .map_err(|error| Failure::Io(format!("no temporary directory: {error}")))?;
    let client = Client::new()?;
    let relay = Relay::start(client.clone(), arguments.forward_to.clone());
    let relay = relay.await.map_err(|error| Failure::Io(chain(error)))?;

    let file = directory.path().join("countersign.toml");
    std::fs::write(&file, configuration(arguments, relay))
        .map_err(|error| Failure::Io(format!("{}: {error}", file.display())))?;
    let environment = |name: &str| arguments.secret.clone().filter(|_| name == SECRET);
    // What is wrong with the configuration is wrong with an argument: there is nothing else in it.
    let config = config::load(&file, &environment, Clock::system().now())
        .map_err(|error| Failure::Usage(chain(error)))?;
    let load = || Err("`listen` has no configuration file".to_owned());
    let app = App::start(config, Box::new(load), Clock::system()).await;
    let app = app.map_err(|error| Failure::Io(chain(error)))?;

    let provider = &arguments.provider;
    let local = format!("http://{}/webhooks/{provider}", app.listen_address());
    say(&format!("for {provider}    {}", public(arguments.public_url.as_ref(), &local, provider)));
    if arguments.public_url.is_some() {
        say(&format!("tunnel to    {local}"));
    }
    say(&format!("forwards to  {}", arguments.forward_to));
    say(&format!(
        "console      http://{0}/  and  countersign status --admin http://{0}",
        app.admin_address()
    ));
    say("end with Ctrl-C; what has not reached your application by then is gone\n");

    let mut watch = Watch::new(client, app.admin_address(), provider);
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            reason = app.failed() => return Err(Failure::Io(reason)),
            _ = ticks.tick() => watch.look().await?,
        }
    }
    watch.look().await?;
    let counts = watch.counts();
    app.drain().await;
    say(&format!("\n{counts}"));
    Ok(())
}

/// The URL to paste into the provider.
fn public(told: Option<&Uri>, local: &str, provider: &str) -> String {
    match told {
        Some(url) => format!("{}/webhooks/{provider}", url.to_string().trim_end_matches('/')),
        None => local.to_owned(),
    }
}

fn configuration(arguments: &Arguments, relay: SocketAddr) -> String {
    let Arguments { provider, listen, admin, forward_to, public_url, .. } = arguments;
    let public_url = match public_url {
        Some(url) => format!("listen.public_url = {:?}\n", url.to_string().trim_end_matches('/')),
        None => String::new(),
    };
    let secrets = match &arguments.secret {
        Some(_) => format!("secrets = [{{ env = \"{SECRET}\" }}]\n"),
        None => String::new(),
    };
    let path = forward_to.path_and_query().map_or("/", |path| path.as_str());
    format!(
        "listen.address = \"{listen}\"\n{public_url}admin.address = \"{admin}\"\n\
         store = {{ path = \"data\", disk_reserve = \"1MiB\" }}\n\
         [[source]]\nname = \"{provider}\"\nprovider = \"{provider}\"\n{secrets}to = [\"application\"]\n\
         [[destination]]\nname = \"application\"\nurl = \"http://{relay}{path}\"\ntimeout = \"1m\"\n\
         breaker = \"off\"\nretry = {{ initial = \"1s\", max = \"10s\", jitter = \"none\" }}\n"
    )
}

/// A document of the gateway's admin listener.
async fn ask(client: &Client, admin: SocketAddr, path: &str) -> Result<Bytes, Failure> {
    let request = Request::get(format!("http://{admin}{path}")).body(Bytes::new());
    let request = request.map_err(|error| Failure::Failed(error.to_string()))?;
    Ok(client.exchange(request).await?.into_body())
}
