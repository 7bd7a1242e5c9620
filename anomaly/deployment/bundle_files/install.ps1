# Installs this bundle into a new virtual environment, without a network.
#     powershell -ExecutionPolicy Bypass -File install.ps1 VENV [PYTHON]
param([Parameter(Mandatory)][string]$Venv, [string]$Python = "python")
& $Python -I "$PSScriptRoot\check.py" --files
if ($LASTEXITCODE) { exit $LASTEXITCODE }
& $Python -I -m venv $Venv
if ($LASTEXITCODE) { exit $LASTEXITCODE }
& "$Venv\Scripts\python.exe" -I -m pip --isolated --disable-pip-version-check install --quiet --no-index --find-links "$PSScriptRoot\wheels" --requirement "$PSScriptRoot\requirements.txt"
if ($LASTEXITCODE) { exit $LASTEXITCODE }
& "$Venv\Scripts\python.exe" -I "$PSScriptRoot\check.py"
exit $LASTEXITCODE
