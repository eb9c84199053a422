//! `skiff token`: bootstrap tokens, as kubeadm's.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use skiff_machine::api::Client;
use skiff_machine::token::{self, Listed, NODE_GROUP, Token, USAGES, Wish};
use skiff_machine::{CertificateKey, Layout, duration, init};

use crate::args::{Output, OutputArgs};
use crate::machine::print_json;

/// `skiff token` arguments.
#[derive(Args, Debug)]
pub(crate) struct TokenArgs {
    /// The kubeconfig to use [default: /etc/kubernetes/admin.conf]
    #[arg(long, global = true, env = "KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token known to the cluster and print it
    #[command(after_help = "Example:\n  skiff token create --print-join-command")]
    Create(CreateArgs),
    /// Print a random token; the cluster does not know it
    Generate(OutputArgs),
    /// List the cluster's tokens
    List(OutputArgs),
    /// Delete tokens by their ids or whole texts
    Delete {
        /// The tokens
        #[arg(required = true, value_name = "TOKEN")]
        tokens: Vec<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// The token; one is made up when absent
    token: Option<Token>,
    /// How long it is valid, 0 for ever
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration::parse)]
    ttl: Duration,
    /// What it is for, for people
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
    /// What it can be used for
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_values_t = USAGES.map(str::to_owned), value_parser = USAGES)]
    usages: Vec<String>,
    /// Groups of who shows it
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = NODE_GROUP, value_parser = group)]
    groups: Vec<String>,
    /// Print the line that another machine joins with
    #[arg(long)]
    print_join_command: bool,
    /// With --print-join-command, print the line for a further control plane: the key that `skiff init phase upload-certs` printed
    #[arg(long, value_name = "KEY", requires = "print_join_command")]
    certificate_key: Option<CertificateKey>,
    #[command(flatten)]
    output: OutputArgs,
}

/// `skiff token`.
pub(crate) async fn run(args: TokenArgs) -> anyhow::Result<()> {
    let kubeconfig = args.kubeconfig.unwrap_or_else(|| Layout::default().kubeconfig("admin"));
    match args.command {
        TokenCommand::Generate(output) => {
            let token = Token::generate()?;
            match output.output {
                Output::Json => print_json(&serde_json::json!({ "token": token }))?,
                Output::Text => println!("{token}"),
            }
        }
        TokenCommand::Create(create) => return make(create, &Client::from_file(&kubeconfig).await?).await,
        TokenCommand::List(output) => {
            let tokens = token::list(&Client::from_file(&kubeconfig).await?).await?;
            match output.output {
                Output::Json => print_json(&tokens)?,
                Output::Text => println!("{}", table(&tokens)),
            }
        }
        TokenCommand::Delete { tokens, output } => {
            let api = Client::from_file(&kubeconfig).await?;
            let mut deleted = Vec::new();
            for given in tokens {
                let id = given.split('.').next().unwrap_or_default();
                anyhow::ensure!(
                    token::delete(&api, &given).await?,
                    "there is no bootstrap token {id:?}; `skiff token list` shows those that exist"
                );
                if output.output == Output::Text {
                    println!("bootstrap token {id:?} deleted");
                }
                deleted.push(id.to_owned());
            }
            if output.output == Output::Json {
                print_json(&serde_json::json!({ "deleted": deleted }))?;
            }
        }
    }
    Ok(())
}

async fn make(args: CreateArgs, api: &Client) -> anyhow::Result<()> {
    let token = match args.token {
        Some(token) => token,
        None => Token::generate()?,
    };
    let wish = Wish {
        ttl: (!args.ttl.is_zero()).then_some(args.ttl),
        description: args.description,
        usages: args.usages,
        groups: args.groups,
    };
    token::create(api, &token, &wish).await?;
    let text = if args.print_join_command {
        let told = init::cluster_info(api).await?;
        init::join_command(&told.server, Some(&token), told.pin(), args.certificate_key.as_ref())
            .replace(" \\\n\t", " ")
    } else {
        token.to_string()
    };
    match args.output.output {
        Output::Json => {
            print_json(&serde_json::json!({ "token": token, "joinCommand": args.print_join_command.then_some(text) }))
        }
        Output::Text => {
            println!("{text}");
            Ok(())
        }
    }
}

fn table(tokens: &[Listed]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION", "EXTRA GROUPS"]);
    for token in tokens {
        let ends = token.expires.as_deref().and_then(|text| text.parse::<Timestamp>().ok());
        let left = ends.map(|end| Duration::try_from(end.duration_since(Timestamp::now())).unwrap_or_default());
        let or = |text: &str, otherwise: &str| {
            if text.is_empty() {
                otherwise.to_owned()
            } else {
                text.to_owned()
            }
        };
        table.add_row([
            token.token.to_string(),
            left.map_or_else(|| "<forever>".to_owned(), duration::short),
            token.expires.clone().unwrap_or_else(|| "<never>".to_owned()),
            token.usages.join(","),
            or(&token.description, "<none>"),
            or(&token.groups.join(","), "<none>"),
        ]);
    }
    table.to_string()
}

fn group(text: &str) -> Result<String, String> {
    token::check_group(text).map(|()| text.to_owned())
}
