# A formula for a checkout: brew install --HEAD ./packaging/homebrew/swarm-node.rb
class SwarmNode < Formula
  desc "Run one large language model together: peer-to-peer swarm inference"
  homepage "file://#{File.expand_path("../..", __dir__)}"
  license "MIT"
  head "file://#{File.expand_path("../..", __dir__)}", using: :git, branch: "main"

  depends_on "python@3.12"

  def install
    system Formula["python@3.12"].opt_bin/"python3.12", "-m", "venv", libexec
    extras = Hardware::CPU.arm? && OS.mac? ? "gateway,chat,mlx" : "gateway,chat"
    system libexec/"bin/pip", "install", "--constraint", "scripts/constraints.txt", ".[#{extras}]"
    bin.install_symlink libexec/"bin/swarm-node"
    %w[bash zsh fish].each do |shell|
      (buildpath/shell).write Utils.safe_popen_read(bin/"swarm-node", "completion", shell)
    end
    bash_completion.install "bash" => "swarm-node"
    zsh_completion.install "zsh" => "_swarm-node"
    fish_completion.install "fish" => "swarm-node.fish"
  end

  service do
    run [opt_bin/"swarm-node", "serve"]
    keep_alive crashed: true
    log_path var/"log/swarm-node.log"
    error_log_path var/"log/swarm-node.log"
  end

  def caveats
    "`brew services start swarm-node` serves what ~/.swarm-node/config.toml says: swarm-node config init"
  end

  test do
    assert_match "swarm-node", shell_output("#{bin}/swarm-node --version")
  end
end
