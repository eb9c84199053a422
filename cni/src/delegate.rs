//! Address management by whatever plugin the configuration names: ours in this process, others as programs.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::error::{Code, Error};
use crate::host_local;
use crate::outcome::{Network, Reply};
use crate::request::{Request, Verb};

/// Runs a verb of the plugin `ipam.type`.
pub(crate) fn ipam(request: &Request) -> Result<Network, Error> {
    let kind = request.network.ipam.kind.as_str();
    let reply = match kind {
        // Executing ourselves again would cost more than all of its work.
        "host-local" => host_local::run(request)?,
        _ => execute(kind, request)?,
    };
    match reply {
        Reply::Network(network) => Ok(network),
        Reply::Silent => Ok(Network::default()),
    }
}

fn execute(kind: &str, request: &Request) -> Result<Reply, Error> {
    let program = find(kind, request)?;
    let failed = |source| {
        Error::internal(
            format_args!("cannot run the IPAM plugin {}", program.display()),
            &source,
        )
    };
    let environment = &request.environment;
    let mut child = Command::new(&program)
        .env("CNI_COMMAND", request.verb.to_string())
        .env("CNI_CONTAINERID", &environment.container)
        .env("CNI_NETNS", &environment.namespace)
        .env("CNI_IFNAME", &environment.interface)
        .env("CNI_ARGS", &environment.arguments)
        .env("CNI_PATH", &environment.path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A plugin that fails early closes its input; what it prints tells more than the broken pipe.
        stdin.write_all(&request.input).ok();
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        return Err(refusal(kind, &output.stdout));
    }
    if request.verb != Verb::Add {
        return Ok(Reply::Silent);
    }
    serde_json::from_slice(&output.stdout)
        .map(Reply::Network)
        .map_err(|source| {
            Error::new(
                Code::Decoding,
                format!("the IPAM plugin {kind:?} printed no valid result"),
            )
            .with(&source)
        })
}

fn find(kind: &str, request: &Request) -> Result<PathBuf, Error> {
    let path = &request.environment.path;
    let missing = || {
        let folders = path.to_string_lossy().replace(':', " ");
        Error::new(
            Code::Internal,
            format!("failed to find plugin {kind:?} in path [{folders}]"),
        )
    };
    // The name comes from the configuration: it names a file in these folders and none elsewhere.
    if kind.is_empty() || kind.contains('/') {
        return Err(missing());
    }
    std::env::split_paths(path)
        .map(|folder| folder.join(kind))
        .find(|file| file.is_file())
        .ok_or_else(missing)
}

/// Another plugin's error, passed on as it is.
fn refusal(kind: &str, output: &[u8]) -> Error {
    #[derive(Deserialize)]
    struct Printed {
        code: u32,
        msg: String,
        #[serde(default)]
        details: String,
    }
    match serde_json::from_slice::<Printed>(output) {
        Ok(printed) => Error {
            code: Code::Other(printed.code),
            message: printed.msg,
            details: printed.details,
        },
        Err(_) => Error::new(Code::Internal, format!("the IPAM plugin {kind:?} failed"))
            .details(String::from_utf8_lossy(output).into_owned()),
    }
}
