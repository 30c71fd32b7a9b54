# SPDX-License-Identifier: Apache-2.0
# A formula for a tap (`brew install OWNER/TAP/vllm-metal`): scripts/release_files.py fills in the
# repository, the version and the checksum, and each release carries the result.
#
# The release's install.sh makes the environment when the user asks for it: Homebrew would rewrite the
# libraries' paths, and formulas may not download while they install.
class VllmMetal < Formula
  desc "Serve language models on Apple Silicon: vLLM with a C++ compute core on MLX"
  homepage "https://github.com/@REPOSITORY@"
  url "https://github.com/@REPOSITORY@/releases/download/v@VERSION@/install.sh"
  version "@VERSION@"
  sha256 "@SHA256@"
  license "Apache-2.0"

  depends_on arch: :arm64
  depends_on macos: :sonoma
  depends_on "uv"

  def install
    libexec.install "install.sh"
    (bin/"vllm-metal-install").write <<~SH
      #!/bin/bash
      exec /bin/bash "#{libexec}/install.sh" --version "#{version}" "$@"
    SH
  end

  def caveats
    <<~TEXT
      vLLM and its packages are installed into ~/.venv-vllm-metal by
        vllm-metal-install
      and removed by
        vllm-metal-install --uninstall
    TEXT
  end

  test do
    assert_match "Usage: install.sh", shell_output("#{bin}/vllm-metal-install --help")
  end
end
