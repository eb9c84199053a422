//! `skiff certs`: the certificates of a control plane, as kubeadm's.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use skiff_machine::certs::{self, Certificate};
use skiff_machine::{CertificateKey, Layout, duration};

use crate::args::{Output, OutputArgs};
use crate::machine::print_json;

/// `skiff certs` arguments.
#[derive(Args, Debug)]
pub(crate) struct CertsArgs {
    #[command(subcommand)]
    command: CertsCommand,
}

#[derive(Debug, Subcommand)]
enum CertsCommand {
    /// Show when certificates end
    CheckExpiration(OutputArgs),
    /// Issue certificates anew; the processes take them up while they run
    #[command(after_help = "Examples:\n  skiff certs renew all\n  skiff certs renew apiserver admin.conf")]
    Renew {
        /// `all`, or names as check-expiration shows them
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print a random key for `skiff init --upload-certs --certificate-key`
    CertificateKey(OutputArgs),
}

/// `skiff certs`.
pub(crate) async fn run(args: CertsArgs) -> anyhow::Result<()> {
    let layout = Layout::default();
    match args.command {
        CertsCommand::CheckExpiration(output) => {
            let (certificates, authorities) = certs::check_expiration(&layout, Timestamp::now())?;
            match output.output {
                Output::Json => print_json(
                    &serde_json::json!({ "certificates": certificates, "certificateAuthorities": authorities }),
                ),
                Output::Text => {
                    println!(
                        "{}\n\n{}",
                        table("CERTIFICATE", &certificates),
                        table("CERTIFICATE AUTHORITY", &authorities)
                    );
                    Ok(())
                }
            }
        }
        CertsCommand::Renew { names, output } => {
            let renewed = certs::renew(&layout, &names)?;
            match output.output {
                Output::Json => print_json(&serde_json::json!({ "renewed": renewed })),
                Output::Text => {
                    for name in renewed {
                        println!("certificate {name} renewed");
                    }
                    Ok(())
                }
            }
        }
        CertsCommand::CertificateKey(output) => {
            let key = CertificateKey::generate()?.to_string();
            match output.output {
                Output::Json => print_json(&serde_json::json!({ "certificateKey": key })),
                Output::Text => {
                    println!("{key}");
                    Ok(())
                }
            }
        }
    }
}

fn table(title: &str, certificates: &[Certificate]) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header([title, "EXPIRES", "RESIDUAL TIME", "SIGNED BY", "EXTERNALLY MANAGED"]);
    for certificate in certificates {
        let residual = match certificate.residual_seconds {
            0 => "<expired>".to_owned(),
            _ => duration::short(certificate.residual()),
        };
        table.add_row([
            certificate.name.as_str(),
            &certificate.expires,
            &residual,
            &certificate.authority,
            if certificate.externally_managed { "yes" } else { "no" },
        ]);
    }
    table.to_string()
}
