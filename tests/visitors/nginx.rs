//! Behind nginx as Debian packages it: `LANECAST_TEST_NGINX` names the program.

use super::*;

/// A proxy that is killed when the test ends.
pub(crate) struct Nginx {
    child: Child,
    /// Forwards with the server's own address as `Host`, which is nginx's default.
    pub(crate) plain: SocketAddr,
    /// Forwards with the `Host` of the request.
    pub(crate) forwarding: SocketAddr,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Nginx {
    /// Starts nginx in front of `server`; paths that begin with `/page` go to `pages`.
    pub(crate) async fn start(program: &str, name: &str, server: SocketAddr, pages: SocketAddr) -> Self {
        let directory = directory(name);
        let [plain, forwarding] = free_ports();
        let upgrade = "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; \
                       proxy_set_header Connection $connection_upgrade;";
        let side = |listen: SocketAddr, more: &str| {
            format!(
                "server {{ listen {listen}; location /page {{ proxy_pass http://{pages}; }}
                 location / {{ proxy_pass http://{server}; {upgrade} {more} }} }}\n"
            )
        };
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {}/{what};\n", directory.display()))
            .concat();
        let config = format!(
            "daemon off;\nmaster_process off;\npid {0}/pid;\nerror_log {0}/error.log;\n\
             events {{ worker_connections 64; }}\nhttp {{\naccess_log off;\n{temporary}\
             map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}\n{1}{2}}}\n",
            directory.display(),
            side(plain, ""),
            side(forwarding, "proxy_set_header Host $http_host;"),
        );
        let path = directory.join("nginx.conf");
        std::fs::write(&path, config).unwrap();
        let mut command = Command::new(program);
        command.arg("-p").arg(&directory).arg("-c").arg(&path).arg("-e").arg(directory.join("error.log"));
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let nginx = Self { child, plain, forwarding };
        for addr in [plain, forwarding] {
            let up = async {
                while TcpStream::connect(addr).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            soon("nginx", up).await;
        }
        nginx
    }
}

/// Two ports that were free just now.
fn free_ports() -> [SocketAddr; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}

#[tokio::test]
async fn behind_nginx_pages_need_the_public_url() {
    let Some(program) = program("LANECAST_TEST_NGINX") else { return };
    let page = ["Host: robot.example", "Origin: https://robot.example"];
    let foreign = ["Host: robot.example", "Origin: https://evil.example"];
    // The headers of a program that connects through the proxy.
    let plain = ["Host: robot.example"];
    // 1. Without a public URL, nginx's default lets programs in and no page; with the viewer's own Host, nobody gets
    // in.
    let server = Server::on_loopback(&[]);
    let nginx = Nginx::start(&program, "nginx-without", server.addrs[0], server.addrs[0]).await;
    expect(nginx.plain, &[(&plain, 101), (&page, 403), (&foreign, 403)]).await;
    expect(nginx.forwarding, &[(&plain, 403), (&page, 403), (&foreign, 403)]).await;
    let (_, answer) = ask(nginx.plain, &page).await;
    assert!(answer.contains("--public-url https://robot.example"), "{answer}");
    // 2. With a public URL, both let in its own pages, and no others.
    let server = Server::on_loopback(&["--public-url", "https://robot.example"]);
    let nginx = Nginx::start(&program, "nginx-with", server.addrs[0], server.addrs[0]).await;
    for proxy in [nginx.plain, nginx.forwarding] {
        expect(proxy, &[(&plain, 101), (&page, 101), (&foreign, 403)]).await;
    }
}
