//! The CNI plugins that the container runtime executes, in one program: `bridge`, `host-local`, `loopback`, `portmap`.
//!
//! A runtime calls a plugin with a verb in `CNI_COMMAND`, the container in further variables and the network's
//! configuration on standard input; it reads a JSON result, or a JSON error, from standard output. [`main_as`] is that
//! outermost step; [`run`] is the same without a process around it. Each verb of each plugin is a function from a
//! [`Request`] to a [`Reply`]; nothing is kept between calls but the leases of `host-local`.
//!
//! Everything is synchronous: a plugin lives for some milliseconds, and most of them are the kernel's.

use std::io::{Read, Write};
use std::process::ExitCode;

mod bridge;
mod config;
mod delegate;
mod error;
mod host_local;
mod loopback;
mod masquerade;
mod outcome;
mod portmap;
mod request;
mod rules;
mod version;

pub use error::{Code, Error};
pub use request::{Environment, Verb};

use outcome::Reply;
use request::Request;

/// The plugins in this program, by the name that the runtime calls them by.
pub const PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "portmap"];

/// Runs the plugin of a name as the process that the runtime started: variables and standard input in, standard output
/// and exit status out.
pub fn main_as(name: &str) -> ExitCode {
    let environment = Environment::of_process();
    if environment.command.is_none() {
        // Called by a person: say what this is, as upstream's plugins do.
        eprintln!("CNI {name} plugin (skiff {})", env!("CARGO_PKG_VERSION"));
        eprintln!("CNI protocol versions supported: {}", version::SUPPORTED.join(", "));
        return ExitCode::SUCCESS;
    }
    let mut input = Vec::new();
    let outcome = match std::io::stdin().lock().read_to_end(&mut input) {
        Ok(_) => run(name, &environment, &input),
        Err(source) => {
            Err(Error::new(Code::Io, "cannot read the network configuration from standard input").with(&source))
        }
    };
    let (text, status) = match outcome {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (error.to_json(), ExitCode::FAILURE),
    };
    // Without a reader there is nobody left to tell.
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => status,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Runs one verb of a plugin and returns what it prints.
pub fn run(plugin: &str, environment: &Environment, input: &[u8]) -> Result<String, Error> {
    let request = Request::read(environment, input)?;
    if request.verb == Verb::Version {
        return Ok(version::reply(&request.version));
    }
    let reply = dispatch(plugin, &request)?;
    Ok(match reply {
        Reply::Silent => String::new(),
        Reply::Network(network) => network.to_json(&request.version),
    })
}

/// Runs a verb of a plugin that is in this program, in this process.
fn dispatch(plugin: &str, request: &Request) -> Result<Reply, Error> {
    match plugin {
        "bridge" => bridge::run(request),
        "host-local" => host_local::run(request),
        "loopback" => loopback::run(request),
        "portmap" => portmap::run(request),
        _ => Err(Error::new(
            Code::InvalidEnvironment,
            format!("this program holds no CNI plugin {plugin:?}: it is called by the name of one of {PLUGINS:?}"),
        )),
    }
}
